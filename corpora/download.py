"""Download LJSpeech, or another archive of its shape."""

import os
import tarfile
import tempfile
from pathlib import Path

from command_line.files import DataError
from command_line.main import say
from corpora.layouts import CORPUS_NAME, holds_clips

LJSPEECH_URL = f"https://data.keithito.com/data/speech/{CORPUS_NAME}.tar.bz2"
LJSPEECH_SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"


def download_corpus(folder: Path, url: str, sha256: str) -> Path:
    """Download, check and unpack the corpus, unless it is there; return its folder.

    The folder gets its name only once it is whole.
    """
    corpus = folder if folder.name == CORPUS_NAME else folder / CORPUS_NAME
    for path in (folder, corpus):
        if holds_clips(path):
            return path
    if corpus.exists() and any(corpus.iterdir()):
        raise DataError(f"{corpus} is there but no whole corpus; move it away before --download.")
    if not hasattr(tarfile, "data_filter"):
        raise DataError("--download needs Python 3.10.12, 3.11.4 or newer, to unpack safely.")
    import torch  # takes seconds

    say(f"Downloading {url} and unpacking it (the original is 2.6 GB and takes minutes)")
    try:
        corpus.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download.", dir=corpus.parent) as scratch:
            archive = Path(scratch) / "archive"
            torch.hub.download_url_to_file(url, str(archive), sha256.lower())
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")  # refuses what would leave the folder
            os.replace(Path(scratch) / CORPUS_NAME, corpus)
    except Exception as error:  # network, checksum, archive, disk: many kinds, one sentence
        raise DataError(f"--download failed, nothing was kept: {error}.") from error
    return corpus
