"""Renders the docstrings of the whole package as pages.

python docs/build_api.py FOLDER      # then open FOLDER/index.html
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import pdoc

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's, whichever is installed


def build(folder: Path, source: bool = True) -> None:
    """Write a page for each module into a folder, which is made.

    Args:
        source: whether the pages show the code, too.

    Raises:
        ImportError: a module cannot be imported.
    """
    import medvitlib

    offered_whole(medvitlib)
    footer = "medvitlib: research software, no medical device"
    pdoc.render.configure(docformat="google", footer_text=footer, show_source=source)
    pdoc.pdoc("medvitlib", output_directory=folder)


def offered_whole(package) -> None:
    """Have `__all__` name the modules below, too, and every name in it be there: pdoc shows nothing else."""
    offered = getattr(package, "__all__", None)
    for name in offered or []:
        setattr(package, name, getattr(package, name))  # `medvitlib.data` fetches them when they are asked for
    below = [module for module in pkgutil.iter_modules(package.__path__) if module.name != "__main__"]
    if offered is not None:
        package.__all__ = [*offered, *(module.name for module in below)]
    for module in below:
        found = importlib.import_module(f"{package.__name__}.{module.name}")
        if module.ispkg:
            offered_whole(found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(Path(sys.argv[1]))
