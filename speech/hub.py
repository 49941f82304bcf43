"""A checkpoint by its name on the Hugging Face Hub: USER/NAME, or USER/NAME@REVISION.

    folder = find_checkpoint("someone/a-voice")   # downloaded once, then found in the cache

`load_checkpoint` of speech/voice.py calls this, so that --checkpoint and --warm_start take such a
name wherever they take a folder. extras/publish.py puts a checkpoint there.
"""

import os
import re
from pathlib import Path

from command_line.files import DataError, read_json

HUB_NAME = re.compile(r"(?P<repo>(?P<user>\w[\w.-]*)/\w[\w.-]*)(?:@(?P<revision>\S+))?", re.ASCII)
OWN_FIELDS = {"format_version", "audio", "symbols"}  # of config.json, that no other model has


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself, or where it was downloaded to.

    Only what reads like USER/NAME is looked for on the Hub, and only where there is neither a
    folder of that name nor a folder USER, for in that one NAME is a misspelled path.

    Raises:
        DataError: when the Hub does not have it, cannot be reached, or has another kind of model.
    """
    found = HUB_NAME.fullmatch(str(name))
    if not found or os.path.isdir(name) or os.path.isdir(found["user"]):
        return Path(name)
    config_path = download(str(name), found["repo"], "config.json", found["revision"])
    config = read_json(config_path, f"{name} of the Hugging Face Hub: config.json")
    if not isinstance(config, dict) or not set(config) >= OWN_FIELDS:
        raise DataError(
            f"{name}: the Hugging Face Hub has a model of this name, but not one of these "
            "checkpoints: its config.json has no audio settings and symbols"
        )
    commit = config_path.parent.name  # both files of one state, also while a new one is uploaded
    return download(str(name), found["repo"], "model.safetensors", commit).parent


def download(name: str, repo: str, filename: str, revision: str | None) -> Path:
    """A file of a repository of the Hub, from the cache if it is there; `name` is for messages.

    Raises:
        DataError: when it cannot be had.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except errors.HFValidationError:
        raise DataError(f"{name}: no such checkpoint folder") from None
    except errors.GatedRepoError:
        raise DataError(
            f"{name}: the Hugging Face Hub gives it only to those who have asked on its page"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{name}: no such checkpoint folder, and no repository of this name on the Hugging "
            "Face Hub that you may read (a private one needs `hf auth login` or HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{name}: the repository has no revision {revision}") from None
    except errors.LocalEntryNotFoundError:
        raise DataError(
            f"{name}: no such checkpoint folder, and the Hugging Face Hub cannot be reached, nor "
            "was it downloaded before"
        ) from None
    except errors.EntryNotFoundError:
        raise DataError(
            f"{name}: the repository on the Hugging Face Hub has no {filename}, so it is no "
            "checkpoint"
        ) from None
    except (errors.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: cannot be downloaded ({reason})") from None
