"""Find a checkpoint by its name on the Hugging Face Hub: USER/NAME, or USER/NAME@REVISION.

    folder = find_checkpoint("someone/a-voice")   # downloaded once, then taken from the cache

`load_checkpoint` of speech/voice.py calls this, so --checkpoint and --warm_start take such a name
wherever they take a folder. extras/publish.py uploads a checkpoint.
"""

import os
import re
from pathlib import Path

from command_line.files import DataError, one_line, read_json

HUB_NAME = re.compile(r"(?P<repo>(?P<user>\w[\w.-]*)/\w[\w.-]*)(?:@(?P<revision>\S+))?", re.ASCII)
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
OWN_FIELDS = {"format_version", "audio", "symbols"}  # in config.json of our checkpoints only


def find_checkpoint(name: str | Path) -> Path:
    """Find the folder of a checkpoint, downloading it from the Hub if necessary.

    A name is looked up on the Hub only if it reads like USER/NAME and there is neither a folder of
    that name nor a folder USER: if USER exists here, NAME is a misspelled path.
    """
    found = HUB_NAME.fullmatch(str(name))
    if not found or os.path.isdir(name) or os.path.isdir(found["user"]):
        return Path(name)
    config_path = download(str(name), found["repo"], CONFIG_FILE, found["revision"])
    config = read_json(config_path, f"{name} of the Hugging Face Hub: {CONFIG_FILE}")
    if not isinstance(config, dict) or not set(config) >= OWN_FIELDS:
        lack = f"its {CONFIG_FILE} has no audio settings and symbols"
        raise DataError(f"{name}: is on the Hub, but not one of these checkpoints: {lack}")
    commit = config_path.parent.name  # take both files from one commit, even during an upload
    return download(str(name), found["repo"], WEIGHTS_FILE, commit).parent


def download(name: str, repo: str, filename: str, revision: str | None) -> Path:
    """Download a file of a repository on the Hub, or find it in the cache."""
    from huggingface_hub import errors, hf_hub_download

    missing = "no such checkpoint folder"
    reasons = {  # the first match is reported; some of these classes derive from later ones
        errors.HFValidationError: missing,
        errors.GatedRepoError: "the Hub gives it only to those who have asked on its page",
        errors.RepositoryNotFoundError: f"{missing}, and no repository of this name on the Hugging "
        "Face Hub that you may read (a private one needs `hf auth login` or HF_TOKEN)",
        errors.RevisionNotFoundError: f"the repository has no revision {revision}",
        errors.LocalEntryNotFoundError: f"{missing}, and the Hugging Face Hub cannot be reached",
        errors.EntryNotFoundError: f"the repository on the Hugging Face Hub has no {filename}",
    }
    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except (*reasons, errors.HTTPError, OSError) as error:
        other = f"cannot be downloaded ({one_line(error)})"
        fitting = (reason for kind, reason in reasons.items() if isinstance(error, kind))
        raise DataError(f"{name}: {next(fitting, other)}") from None
