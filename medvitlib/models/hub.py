"""Weights from the Hugging Face hub (timm's) and from torchvision, without the minutes a dead network costs."""

import os
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from medvitlib.errors import WeightsError


def offline() -> bool:
    """Whether the user has switched the hub off (`HF_HUB_OFFLINE=1`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Address of the hub, or of the mirror named by `$HF_ENDPOINT`."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def reachable(url: str, timeout: float = 3.0) -> bool:
    """Whether a server answers at all, in at most `timeout` seconds; proxies are honoured.

    The hub's own library tries six times for each file, 47 s in all, before it reports a missing network.
    """
    answers = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError:  # an answer, if not a kind one
            answers.append(True)
        except (OSError, ValueError, HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name can hang beyond any timeout
    thread.start()
    thread.join(timeout)
    return bool(answers)


def cached_hub_file(repository: str, filename: str = "model.safetensors") -> Path | None:
    """The file in the hub's own cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    return Path(found) if isinstance(found, str) else None


def hub_file(repository: str, filename: str = "model.safetensors") -> Path:
    """Download one file of a hub repository into the hub's cache, with the hub's progress bar.

    Raises:
        WeightsError: offline, unreachable, or not there; within seconds.
    """
    if offline():
        raise WeightsError("HF_HUB_OFFLINE is set")
    if not reachable(endpoint()):
        raise WeightsError(f"{endpoint()} does not answer")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # the hub's errors come from three network libraries, with no base class of their own
        raise WeightsError(
            f"{endpoint()}/{repository}: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def cached_url_file(url: str) -> Path | None:
    """The file in torch's download folder, where torchvision looks too."""
    path = _torch_folder() / Path(urlparse(url).path).name
    return path if path.is_file() else None


def url_file(url: str) -> Path:
    """Download into torch's folder; a hash in the file's name (`resnet18-f37072fd.pth`) is verified.

    Raises:
        WeightsError: unreachable, or the hash differs.
    """
    import torch

    host = "{0.scheme}://{0.netloc}".format(urlparse(url))
    if not reachable(host):
        raise WeightsError(f"{host} does not answer")
    target = _torch_folder() / Path(urlparse(url).path).name
    prefix = torch.hub.HASH_REGEX.search(target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), prefix.group(1) if prefix else None)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{url}: {error}") from error
    return target


def _torch_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"
