"""What tests/conftest.py promises: marked tests skip with a reason, and under CI with the data present they may not."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
    import os
    import pytest

    @pytest.mark.real_data
    def test_needs_data(): pass

    @pytest.mark.real_data
    def test_skips_itself(real_data): pytest.skip("not today")

    @pytest.mark.pretrained
    def test_needs_weights(pretrained_weights): assert pretrained_weights.is_dir()

    def test_plain_skip(): pytest.skip("no marker")

    def test_sees_nothing_of_the_user():
        assert "MEDVIT_DATA" not in os.environ
        assert "user-cache" not in os.environ["MEDVIT_CACHE"]
"""


@pytest.fixture
def outcomes(pytester, monkeypatch, request):
    """Run the tests above with our conftest; returns {test name: outcome} and the output."""
    pytester.makeconftest((Path(request.path).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    real_data\n    pretrained\naddopts = -p no:cacheprovider")
    pytester.makepyfile(TESTS)
    cache = pytester.mkdir("user-cache")
    pytester.mkdir("data")

    def run(ci: str, data: str, weights: bool):
        if weights:
            (cache / "weights").mkdir()
            (cache / "weights" / "vit_small_patch14_dinov2.safetensors").touch()
        for name, value in {"CI": ci, "MEDVIT_DATA": data, "MEDVIT_CACHE": str(cache)}.items():
            monkeypatch.setenv(name, value)
        result = pytester.runpytest_inprocess("-rs")
        return result.parseoutcomes(), result.stdout.str()

    return run


def test_without_data_and_weights_marked_tests_are_skipped_with_a_reason(outcomes):
    counts, output = outcomes(ci="1", data="", weights=False)
    assert counts == {"skipped": 4, "passed": 1}
    assert "MEDVIT_DATA names no existing folder" in output
    assert "medvit weights fetch" in output


def test_outside_ci_a_skip_with_the_data_present_stays_a_skip(outcomes):
    counts, _ = outcomes(ci="", data="data", weights=False)
    assert counts == {"skipped": 3, "passed": 2}


def test_under_ci_with_the_data_present_a_guarded_skip_is_a_failure(outcomes):
    counts, output = outcomes(ci="true", data="data", weights=False)
    assert counts == {"failed": 1, "errors": 1, "skipped": 1, "passed": 2}  # an error is a failure before the body
    assert "may not be skipped under CI: Skipped: not today" in output


def test_under_ci_with_data_and_weights_only_what_skips_itself_fails(outcomes):
    counts, _ = outcomes(ci="true", data="data", weights=True)
    assert counts == {"failed": 1, "skipped": 1, "passed": 3}
