"""Word times by forced alignment, beside the true ones of synthetic speech."""

import json

import numpy as np
import pandas as pd
import pytest

from extras import align_words


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two sentences by espeak-ng, with the true times of their words."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed")
    import corpora.make_demo_corpus as make_demo_corpus

    folder = tmp_path_factory.mktemp("spoken")
    (folder / "texts.txt").write_text(
        "The children walked slowly to the river.\nMy mother opened the window this morning.\n"
    )
    flags = ["--path_to_save", str(folder / "corpus"), "--sentences", str(folder / "texts.txt")]
    flags += ["--engine", "espeak"]
    assert not make_demo_corpus.main(flags)
    return folder / "corpus"


def test_words_are_aligned_where_they_are_spoken(spoken, tmp_path, capsys):
    path = tmp_path / "aligned.json"
    rows = (line.split("|")[::2] for line in (spoken / "metadata.csv").read_text().splitlines())
    manifest = [(str(spoken / f"wavs/{clip_id}.wav"), text, 3.0) for clip_id, text in rows]
    columns = ["file_path", "normalized_transcript", "duration"]
    pd.DataFrame(manifest, columns=columns).to_csv(tmp_path / "m.csv", index=False)
    flags = ["--path_to_manifest", str(tmp_path / "m.csv"), "--output_json", str(path)]
    align_words.main(flags)
    assert "14 words of 2 clips; 0 skipped" in capsys.readouterr().out
    aligned = json.loads(path.read_text())
    truth = json.loads((spoken / "word_times.json").read_text())
    errors = []
    for clip_id, words in truth.items():
        found = aligned[clip_id]
        assert [word["index"] for word in found] == [word["index"] for word in words]
        assert [word["word"] for word in found] == [word["word"].lower() for word in words]
        errors += [a["start"] - b["start"] for a, b in zip(found, words, strict=True)]
    assert np.median(np.abs(errors)) < 0.03 and np.abs(errors).max() < 0.15


def test_recordings_of_one_name_are_refused(tmp_path):
    """word_times.json has the words of a recording by its name."""
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "01.wav").touch()
    rows = "".join(f"{tmp_path}/{part}/01.wav,It rained.,2\n" for part in ("a", "b"))
    (tmp_path / "m.csv").write_text(f"file_path,normalized_transcript,duration\n{rows}")
    flags = ["--path_to_manifest", str(tmp_path / "m.csv"), "--output_json", f"{tmp_path}/x.json"]
    with pytest.raises(SystemExit, match="several recordings are named '01'"):
        align_words.main(flags)


def test_unknown_words_are_looked_up_or_their_clips_skipped(spoken, tmp_path, capsys, monkeypatch):
    wavs = sorted(spoken.glob("wavs/*"))
    rows = [
        (str(wavs[0]), "The childrenz walked slowly to the river."),
        (str(wavs[1]), "My mother opened the xqzt this morning."),
    ]
    manifest = pd.DataFrame(rows, columns=["file_path", "normalized_transcript"])
    manifest.assign(duration=3.0).to_csv(tmp_path / "m.csv", index=False)
    monkeypatch.setattr(align_words, "load_dictionary", lambda: {"childrenz": "CH IH1 L D R AH0 N"})
    path = tmp_path / "aligned.json"
    flags = ["--path_to_manifest", str(tmp_path / "m.csv"), "--output_json", str(path)]
    align_words.main(flags)
    printed = capsys.readouterr()
    assert f"skipped {wavs[1].stem}: no pronunciation of xqzt" in printed.err
    assert "7 words of 1 clips; 1 skipped" in printed.out
    assert [word["word"] for word in json.loads(path.read_text())[wavs[0].stem]][1] == "childrenz"
    monkeypatch.setattr(align_words, "load_dictionary", dict)
    with pytest.raises(SystemExit, match="none of the recordings could be aligned"):
        align_words.main(flags)
