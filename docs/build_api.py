"""Renders the docstrings of the whole package as pages.

python docs/build_api.py FOLDER      # then open FOLDER/index.html
"""

import sys
from pathlib import Path

import pdoc

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's, whichever is installed


def build(folder: Path, source: bool = True) -> None:
    """Write a page for each module into a folder, which is made.

    Args:
        source: whether the pages show the code, too.

    Raises:
        RuntimeError: a module cannot be imported.
    """
    import medvitlib.data

    for name in medvitlib.data.__all__:  # fetched when they are asked for, which pdoc does not do
        setattr(medvitlib.data, name, getattr(medvitlib.data, name))
    footer = "medvitlib: research software, no medical device"
    pdoc.render.configure(docformat="google", footer_text=footer, show_source=source)
    pdoc.pdoc("medvitlib", output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(Path(sys.argv[1]))
