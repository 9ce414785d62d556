#!/usr/bin/env bash
# The project's two commands, and JupyterLab:
#   ./run_all.sh [OPTIONS]   makes .venv, installs, executes every notebook (OPTIONS: ./run_all.sh --help)
#   ./run_all.sh test        the same set-up, then ruff, pytest, and the notebooks against their committed outputs
#   ./run_all.sh install     the same set-up, and nothing else
#   ./run_all.sh test --portable     the notebooks alone: on folders of one's own, and in every arithmetic of this machine
#   ./run_all.sh lab         the same set-up, then JupyterLab on the notebooks
# Safe to run again: what is installed and fetched is left alone, and an interrupted installation is taken up.
# MEDVIT_VENV names another folder than .venv.
set -euo pipefail

say() { printf '[run_all] %s\n' "$*"; }

fail() {
    printf '[run_all] %s\n' "$*" >&2
    exit 1
}

# A path list, with the entries that are relative to the caller's folder made absolute.
absolute() {
    local entries entry result=""
    IFS=: read -r -a entries <<<"$1"
    for entry in "${entries[@]}"; do
        case $entry in "" | /* | "~"*) ;; *) entry=$PWD/$entry ;; esac
        result+=${result:+:}$entry
    done
    printf '%s' "$result"
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later is needed, and none was found. Install one and run this again."
}

make_venv() {
    if [[ -x $python && -e $venv/.medvitlib-base ]] || "$python" -m pip --version &>/dev/null; then
        return
    fi
    local system
    system=$(find_python)
    say "making $venv with $system"
    rm -f "$venv"/.medvitlib-*
    "$system" -m venv "$venv" || fail "$system cannot make a virtual environment (on Debian: apt install python3-venv)."
}

# install NAME STATE ARGUMENTS...: pip install, unless it has succeeded with the same state before.
# The stamp is written last, so that an interrupted installation is repeated. No version is pinned and no further
# index named: torch and torchvision must come from one release.
install() {
    local stamp=$venv/.medvitlib-$1 state=$2 begun=$SECONDS
    if [[ -e $stamp && $(<"$stamp") == "$state" ]]; then
        return
    fi
    say "installing the $1 packages into $venv (the first time: some GB, some minutes)"
    "$python" -m pip install --disable-pip-version-check "${@:3}" || fail "the installation failed; run this again."
    printf '%s\n' "$state" >"$stamp"
    say "installed in $((SECONDS - begun)) s"
}

set_up() {
    local begun=$SECONDS
    make_venv
    install base "$(cksum requirements.txt pyproject.toml; pwd)" -r requirements.txt -e .
    if [[ ${1:-} == test ]]; then
        install development "$(cksum requirements-dev.txt)" -r requirements-dev.txt
    fi
    "$python" -m medvitlib.cli weights fetch ||
        say "WARNING: the pretrained weights could not be fetched; the notebooks that need them will fail."
    say "ready after $((SECONDS - begun)) s"
}

stages=()
status=0

# stage NAME COMMAND...: run it, whatever the stages before it did, and keep its result.
stage() {
    local name=$1 begun=$SECONDS result=ok
    say "$name"
    "${@:2}" || { result=FAILED && status=1; }
    stages+=("$(printf '%-26s %5d s  %s' "$name" $((SECONDS - begun)) "$result")")
}

# check_notebooks ARITHMETIC NOTEBOOK...: against their committed outputs, as a clone without data, runs and cache of its
# own sees them, and without lines that depend on the time a step took.
check_notebooks() {
    local arithmetic=("$python" -m medvitlib.tools.arithmetics "$1")
    "${arithmetic[@]}"
    env -u MEDVIT_DATA MEDVIT_PROGRESS=/dev/null "${arithmetic[@]}" \
        "$python" -m pytest --nbval --nbval-current-env "${@:2}"
}

finish() {
    printf '\n'
    printf '%s\n' "${stages[@]}"
    if ((status)); then say "FAILED"; else say "all passed"; fi
    exit "$status"
}

run_portable() {
    trap 'exit 130' INT
    local name
    stage "own folders" env MEDVIT_BOTH_FOLDERS=1 "$python" -m pytest -q tests/test_own_folders.py
    for name in $("$python" -m medvitlib.tools.arithmetics --names); do
        stage "notebooks, $name" check_notebooks "$name" notebooks
        stages[-1]+="  $("$python" -m medvitlib.tools.arithmetics "$name" || true)"
    done
    finish
}

run_tests() {
    trap 'exit 130' INT
    stage "ruff check" "$python" -m ruff check .
    stage "ruff format" "$python" -m ruff format --check .
    # a file's tests stay together, with what its fixtures trained; one thread each, or the workers would fight for cores
    stage "pytest" env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
        "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
    stage "notebooks" check_notebooks native notebooks
    local least
    least=$("$python" -m medvitlib.tools.arithmetics --names | tail -n 1)
    stage "three notebooks, $least" check_notebooks "$least" notebooks/0[189]_*.ipynb
    finish
}

caller=$PWD
for name in MEDVIT_DATA MEDVIT_WEIGHTS MEDVIT_CACHE MEDVIT_RUNS MEDVIT_VENV; do
    if [[ -n ${!name:-} ]]; then
        export "$name=$(absolute "${!name}")"
    fi
done
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${MEDVIT_VENV:-$PWD/.venv}
python=$venv/bin/python

case ${1:-} in
    -h | --help)
        system=$(find_python)
        exec "$system" -m medvitlib.runner --help
        ;;
    test)
        set_up test
        if [[ ${2:-} == --portable ]]; then run_portable; fi
        run_tests "${@:2}"
        ;;
    install)
        set_up
        say "next: $venv/bin/medvit train --example; README.md, \"Your own images\", has the rest"
        ;;
    lab)
        set_up
        # a python3 kernel of the user's must not stand in for this environment's
        export JUPYTER_PREFER_ENV_PATH=1
        exec "$python" -m jupyterlab --ServerApp.root_dir="$PWD" --LabApp.default_url=/lab/tree/notebooks "${@:2}"
        ;;
    "" | -*)
        # a wrong option is no reason to install 5 GB first
        checker=$python
        [[ -x $checker ]] || checker=$(find_python)
        "$checker" -m medvitlib.runner --check "$@" || exit
        set_up
        exec "$python" -m medvitlib.runner --relative-to "$caller" "$@"
        ;;
    *)
        fail "there is no command '$1'; there are: install, test, lab, and options (./run_all.sh --help)."
        ;;
esac
