"""One HTML page on finished runs, to print or send: the leaderboard, comparisons, and each run with its pictures.

The page needs no other file and no network: pictures are in it, there is no script, and every text from a run folder
is escaped. A browser that reads its policy (first lines) would load nothing else, whatever a run is called.
"""

import base64
import datetime
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medvitlib.duel import compare_runs
from medvitlib.errors import EvaluationError, MedvitError, one_of
from medvitlib.evaluation import paired
from medvitlib.finished import Finished
from medvitlib.forest import plot_forest
from medvitlib.jsonfile import flat
from medvitlib.leaderboard import Leaderboard, alike, leaderboard
from medvitlib.predict import NOTICE
from medvitlib.progress import track

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PICTURES = {
    "confusion": "Confusion, decided by the largest probability",
    "confusion_recall": "Confusion at the threshold chosen on validation for its recall",
    "roc": "ROC",
    "reliability": "Calibration",
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
p, li { max-width: 46rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.notice { border-left: 4px solid #D55E00; padding: .4rem .8rem; background: #fdf3ec; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; margin: .8rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; white-space: nowrap; }
td { overflow-wrap: break-word; max-width: 40rem; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 12rem; }
td.short { white-space: nowrap; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; width: 30rem; max-width: 100%; break-inside: avoid; }
figure.full { width: auto; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: 12.5px; color: #555; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; } nav { display: none; }
  table { font-size: 7.5pt; } th, td { padding: 1pt 4pt; } tbody th { min-width: 4cm; }
  thead { display: table-header-group; }
  .wide { overflow: visible; } tr, figure, .notice { break-inside: avoid; } section.run { break-before: page; }
  h2, h3 { break-after: avoid; } figure { width: 12.5cm; } figure.full { width: 21cm; }
}
"""


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, metric: str = "accuracy", n_boot: int = 1000
) -> tuple[Path, Leaderboard]:
    """Read runs and write the page on them.

    Args:
        runs: folders of runs, or of single runs; `runs_dir()` if there is none.
        out: the file, whose name ends in .html; one that is there is replaced.
        metric: by which the best run of each test set is picked, one of `paired.METRICS`.
        n_boot: draws of patients in each comparison.

    Returns:
        the file's path, and the leaderboard that is in it.

    Raises:
        MedvitError: no finished run there, an unknown metric, or a file that cannot be written.
    """
    out = Path(out).expanduser()
    one_of("metric", metric, paired.METRICS, EvaluationError)
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise MedvitError(f"{out} is no name for a page: give a file that ends in .html, such as report.html.")
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()  # what cannot be written is said before the work
        board = leaderboard(*runs)
        part.write_bytes(page(board, metric=metric, n_boot=n_boot).encode("utf-8", "replace"))
        part.replace(out)
    except OSError as error:
        raise MedvitError(f"{out} cannot be written ({error.strerror}): name another place with --out.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return out, board


def page(board: Leaderboard, *, metric: str = "accuracy", n_boot: int = 1000) -> str:
    """The whole page as text; arguments as `write_report`."""
    scored = [run for run in board.ordered([metric]) if run.report is not None]
    title = f"{_count(len(board.runs), 'run')} on {_count(len({run.data for run in board.runs.values()}), 'data set')}"
    parts = [*_overview(board, metric), *_comparisons(board, metric, n_boot)]
    for number, run in enumerate(track(scored, "Runs", unit="run"), start=1):
        parts += _section(run, number)
    links = "".join(f'<li><a href="#run-{i}">{_text(run.name)}</a></li>' for i, run in enumerate(scored, start=1))
    body = "\n".join(parts)
    today = datetime.date.today().isoformat()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>medvitlib: {_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p class="notice">{_text(NOTICE)}</p>
<p>Written by medvitlib on {today}. This page is complete: {len(body.encode("utf-8", "replace")) / 1e6:.1f} MB,
and no other file.</p>
<nav><ul><li><a href="#board">Leaderboard</a></li><li><a href="#pairs">Comparisons</a></li>{links}</ul></nav>
{body}
<p class="notice">{_text(NOTICE)}</p>
</body>
</html>
"""


def _overview(board: Leaderboard, metric: str) -> Iterator[str]:
    metrics = list(dict.fromkeys([metric, "accuracy", "auroc"]))
    yield '<section id="board">\n<h2>Leaderboard</h2>'
    yield (
        "<p>Each figure is on the run's test images, with the interval that its report gives; two classes are decided "
        "at 0.5. The best of several was picked by these very figures, and is too good by what luck added.</p>"
    )
    scored = [name for name, run in board.runs.items() if run.report is not None]
    if unseen := [name for name in board.runs if name not in scored]:
        yield f"<p>Trained, and not evaluated: {_text(', '.join(unseen))}.</p>"
    if scored:
        yield _table(board.only(run=scored).show(metrics))
        yield _picture(plot_forest(board, metric), f"{metric} of every run, one panel a test set", full=True)
        yield "<h3>Best of each test set, beside published figures</h3>"
        yield "<p>Published figures came without an interval, and some from other images or another split.</p>"
        best = board.beside_published(metric)
        yield _table(best.set_axis([" · ".join(pair) for pair in best.index]).rename_axis("run"))
    if board.skipped:
        rows = "".join(f"<li>{_text(folder)}: {_text(why)}</li>" for folder, why in board.skipped.items())
        yield f"<h3>Left out</h3>\n<ul>{rows}</ul>"
    yield "</section>"


def _comparisons(board: Leaderboard, metric: str, n_boot: int) -> Iterator[str]:
    import pandas as pd

    yield '<section id="pairs">\n<h2>Comparisons</h2>'
    several = [runs for runs in board.test_sets(metric) if len(runs) > 1]
    if not several:
        yield "<p>No two runs were scored on the same images.</p>"
    for runs in track(several, "Comparing", unit="test set"):
        best, found = runs[0], alike(runs, metric, n_boot)
        yield f"<h3>{_text(best.data)}, {_text(best.split)}, {len(best.ids)} images</h3>"
        yield (
            f"<p>Each run minus {_text(best.name)}, the best by {_text(metric)}, on the same patients. Intervals and "
            "p-values (McNemar's exact test; DeLong's) hold for one pair that was chosen beforehand; the last column "
            f"holds for all of them together, by {_text(metric)}.</p>"
        )
        rows = {run.name: compare_runs(run, best, n_boot=n_boot).row() for run in runs[1:]}
        same = ["unknown"] * len(rows) if found is None else ["no" if one else "yes" for one in found[1:]]
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
        yield _table(table.assign(**{"told apart from the best": same}))
    yield "</section>"


def _section(run: Finished, number: int) -> Iterator[str]:
    report = run.report
    yield f'<section class="run" id="run-{number}">\n<h2>{_text(run.name)}</h2>'
    if not run.own_test:
        yield '<p class="notice">Scored on other images than the test part that was cut with its training part.</p>'
    yield "<h3>What was found</h3>"
    yield f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in report.sentences())}</ul>"
    yield "<h3>Metrics</h3>"
    yield _table(
        report.table(methods=True).map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    )
    if report.operating_points:
        yield "<h3>Operating points</h3>"
        shown = report.operating_table().T.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
        yield _table(shown.rename_axis("at"))
    yield "<h3>Pictures</h3>"
    yield from _pictures(run)
    yield "<h3>Settings</h3>"
    yield _settings(run)
    yield "</section>"


def _pictures(run: Finished) -> Iterator[str]:
    """Those that `evaluate` has drawn, or drawn now; the curves of the training, where there were epochs."""
    files = {name: run.folder / "plots" / f"{name}.png" for name in PICTURES}
    found = {name: content for name, path in files.items() if (content := _png(path)) is not None}
    figures = {} if found else {name: figure for name, figure in run.report.figures().items() if name in PICTURES}
    for name, words in PICTURES.items():
        if name in found or name in figures:
            yield _picture(found.get(name) or figures[name], f"{words}: {run.name}")
    if (curves := _png(run.folder / "training.png")) is not None:
        yield _picture(curves, f"Training: {run.name}", full=True)


def _settings(run: Finished) -> str:
    import pandas as pd

    config, data = run.config, run.config["data"]
    rows = {"data": run.data, "split": "; ".join([run.split, *data["notes"]])}
    rows |= {key: _flat(value) for key, value in config.items() if key not in ("name", "data")}
    tried = f"{run.info.get('candidates', 1)} {run.info.get('compared', 'settings')} compared"
    rows |= {"chosen on validation": f"{_flat(run.info.get('chosen', {}))} of {tried}"}
    rows |= {"parameters": f"{run.parameters:,}", "model.safetensors": f"{run.megabytes:.1f} MB"}
    return _table(pd.DataFrame.from_dict(rows, orient="index", columns=["value"]).rename_axis("setting"))


def _flat(value) -> str:
    """Settings as "lr=0.001, epochs=3"; where a file lay on someone's machine is nobody's business."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}={item}" for key, item in flat(value).items() if key != "path_or_url")


def _table(table: "pd.DataFrame") -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in (table.index.name or "", *table.columns))
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th>{"".join(map(_cell, row))}</tr>\n'
        for name, *row in table.itertuples(name=None)
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>'


def _cell(value) -> str:
    kind = ' class="short"' if len(str(value)) < 26 else ""  # a figure with its interval stays on one line
    return f"<td{kind}>{_text(value)}</td>"


def _picture(content: "bytes | Figure", caption: str, full: bool = False) -> str:
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        content.savefig(buffer, format="png")
        content = buffer.getvalue()
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    kind = ' class="full"' if full else ""
    words = _text(caption)
    return f'<figure{kind}><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _png(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def _text(value) -> str:
    """Any text, so that a browser shows it and does not obey it."""
    return escape(str(value), quote=True)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")
