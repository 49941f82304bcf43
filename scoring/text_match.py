"""Score whether a voice says its text, without a recognizer and in any language.

    text_match(clips, 3, mel)    # of a mel that was spoken of the text of clips[3], 0 to 1

Each half second of speech is compared with the clip's own recording and with the recordings of
other texts that are about as long, each of them warped onto the speech. Where the voice says its
text, its own recording is the nearest. A voice that mumbles along a perfect alignment scores about
1 / (1 + N_OTHERS), because no recording is nearer to that than the others are.
"""

from functools import lru_cache

import numpy as np
from torch import Tensor

from dataset import TTSDataset
from scoring.scores import to_cepstra, warp

N_OTHERS = 15  # recordings of other texts
N_AVERAGED = 2  # frames that are averaged into one, which makes warping four times as fast
WINDOW_SECONDS = 0.5  # about a word
GOOD, FAIR = 0.8, 0.5  # text matches from which on a voice is good and fair


def has_other_texts(clips: TTSDataset) -> bool:
    """Return True if the clips have more than one text, without which there is no text match."""
    return len(set(clips.texts)) > 1


def text_match(clips: TTSDataset, index: int, mel: Tensor) -> float:
    """Return the share of a mel, (T_mel, num_mels), that is most like its own clip's recording.

    A window of WINDOW_SECONDS counts if it is nearer to the recording of clips[index] than to
    those of N_OTHERS clips, or fewer if there are no more.
    """
    distances = compare(clips, index, mel)
    return float(np.mean(distances[0] < distances[1:].min(axis=0)))


def describe_match(match: float) -> str:
    """Describe a text match in a word; unless it is good, say from where on it would be."""
    if match >= GOOD:
        return "good"
    return f"{'fair' if match >= FAIR else 'poor'}: good from {GOOD} on"


def compare(clips: TTSDataset, index: int, mel: Tensor) -> np.ndarray:
    """Measure how far each window of a mel is, in dB, from the clip's own and other recordings.

    Returns:
        (1 + N_OTHERS, windows), the clip's own recording first. A distance is the mean over what
        warping pairs with the frames of the window; NaN if the mel has values that are not finite.
    """
    rivals = [index, *pick_others(clips, index)]
    size = WINDOW_SECONDS / clips.audio_config.hop_seconds  # frames
    n_windows = max(round(len(mel) / size), 1)
    if not mel.isfinite().all():  # of a broken model
        return np.full((len(rivals), n_windows), np.nan)
    spoken = to_steps(mel, clips)
    firsts = np.arange(n_windows) * len(spoken) // n_windows
    distances = []
    for other in rivals:
        i, _, path = warp(spoken, load_recording(clips, other))
        sums, counts = np.bincount(i, path), np.bincount(i)  # (T,) each
        distances.append(np.add.reduceat(sums, firsts) / np.add.reduceat(counts, firsts))
    return np.stack(distances)


def pick_others(clips: TTSDataset, index: int) -> list[int]:
    """Pick up to N_OTHERS clips with other texts, those whose recordings are nearest in length."""
    lengths, text = np.array(clips.n_frames), clips.texts[index]
    order = np.argsort(np.abs(lengths - lengths[index]), kind="stable").tolist()
    return [i for i in order if clips.texts[i] != text][:N_OTHERS]


@lru_cache(maxsize=4096)  # 10 s of recording are 45 kB
def load_recording(clips: TTSDataset, index: int) -> np.ndarray:
    """Load the cepstra of a clip's recording, see `to_steps`."""
    return to_steps(clips[index].mel, clips)


def to_steps(mel: Tensor, clips: TTSDataset) -> np.ndarray:
    """Turn a mel into the cepstra (T_mel / N_AVERAGED, 13) of N_AVERAGED frames each."""
    cepstra = to_cepstra(mel, clips.audio_config)
    padded = np.pad(cepstra, ((0, -len(cepstra) % N_AVERAGED), (0, 0)), mode="edge")
    return padded.reshape(-1, N_AVERAGED, cepstra.shape[1]).mean(axis=1)
