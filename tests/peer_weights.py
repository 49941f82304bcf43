"""Not a test: state dicts of torchaudio, NVIDIA, Coqui for tests of convert_checkpoint.py."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import Tensor

from convert_checkpoint import main, peer_name
from model import Tacotron2, Tacotron2Config

LAYOUTS = pytest.mark.parametrize("layout", ["torchaudio", "nvidia"])
# None of these is a default, and no two are the same.
PEER_SIZES = {
    "n_mels": 14, "n_symbol": 38, "symbol_embedding_dim": 24, "encoder_embedding_dim": 24,
    "encoder_n_convolution": 2, "encoder_kernel_size": 3, "decoder_rnn_dim": 20,
    "attention_rnn_dim": 20, "attention_hidden_dim": 12, "attention_location_n_filter": 6,
    "attention_location_kernel_size": 9, "prenet_dim": 10, "postnet_n_convolution": 4,
    "postnet_kernel_size": 7, "postnet_embedding_dim": 16,
}  # fmt: skip
OUR_SIZES = Tacotron2Config(
    vocab_size=38, num_mels=14, character_embed_dim=24, encoder_embed_dim=24,
    encoder_n_convolutions=2, encoder_kernel_size=3, decoder_rnn_embed_dim=20, attention_dim=12,
    attention_location_n_filters=6, attention_location_kernel_size=9, decoder_prenet_dim=10,
    decoder_postnet_num_convs=4, decoder_postnet_kernel_size=7, decoder_postnet_n_filters=16,
)  # fmt: skip


def convolution(
    name: str, *shape: int, conv: str = "0.conv", norm: str = "1"
) -> dict[str, tuple[int, ...]]:
    """List the entries of a convolution and its batch norm, whose names the peers differ in."""
    fields = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{name}.{conv}.weight": shape,
        f"{name}.{conv}.bias": shape[:1],
        **{f"{name}.{norm}.{field}": shape[:1] for field in fields},
        f"{name}.{norm}.num_batches_tracked": (),
    }


# NVIDIA/tacotron2's model.py and layers.py with hparams.py's sizes, written down name by name.
NVIDIA_SHAPES = {
    "embedding.weight": (148, 512), **convolution("encoder.convolutions.0", 512, 512, 5),
    **convolution("encoder.convolutions.1", 512, 512, 5),
    **convolution("encoder.convolutions.2", 512, 512, 5), "encoder.lstm.weight_ih_l0": (1024, 512),
    "encoder.lstm.weight_hh_l0": (1024, 256), "encoder.lstm.bias_ih_l0": (1024,),
    "encoder.lstm.bias_hh_l0": (1024,), "encoder.lstm.weight_ih_l0_reverse": (1024, 512),
    "encoder.lstm.weight_hh_l0_reverse": (1024, 256), "encoder.lstm.bias_ih_l0_reverse": (1024,),
    "encoder.lstm.bias_hh_l0_reverse": (1024,),
    "decoder.prenet.layers.0.linear_layer.weight": (256, 80),
    "decoder.prenet.layers.1.linear_layer.weight": (256, 256),
    "decoder.attention_rnn.weight_ih": (4096, 768), "decoder.attention_rnn.weight_hh": (4096, 1024),
    "decoder.attention_rnn.bias_ih": (4096,), "decoder.attention_rnn.bias_hh": (4096,),
    "decoder.attention_layer.query_layer.linear_layer.weight": (128, 1024),
    "decoder.attention_layer.memory_layer.linear_layer.weight": (128, 512),
    "decoder.attention_layer.v.linear_layer.weight": (1, 128),
    "decoder.attention_layer.location_layer.location_conv.conv.weight": (32, 2, 31),
    "decoder.attention_layer.location_layer.location_dense.linear_layer.weight": (128, 32),
    "decoder.decoder_rnn.weight_ih": (4096, 1536), "decoder.decoder_rnn.weight_hh": (4096, 1024),
    "decoder.decoder_rnn.bias_ih": (4096,), "decoder.decoder_rnn.bias_hh": (4096,),
    "decoder.linear_projection.linear_layer.weight": (80, 1536),
    "decoder.linear_projection.linear_layer.bias": (80,),
    "decoder.gate_layer.linear_layer.weight": (1, 1536),
    "decoder.gate_layer.linear_layer.bias": (1,),
    **convolution("postnet.convolutions.0", 512, 80, 5),
    **convolution("postnet.convolutions.1", 512, 512, 5),
    **convolution("postnet.convolutions.2", 512, 512, 5),
    **convolution("postnet.convolutions.3", 512, 512, 5),
    **convolution("postnet.convolutions.4", 80, 512, 5),
}  # fmt: skip


coqui_convolution = partial(convolution, conv="convolution1d", norm="batch_normalization")
# Coqui TTS 0.28's tts/models/tacotron2.py and tts/layers/tacotron/ with 29 symbols and r = 2,
# written down name by name. Double decoder consistency adds a coarse_decoder, for training only.
COQUI_SHAPES = {
    "embedding.weight": (29, 512), **coqui_convolution("encoder.convolutions.0", 512, 512, 5),
    **coqui_convolution("encoder.convolutions.1", 512, 512, 5),
    **coqui_convolution("encoder.convolutions.2", 512, 512, 5),
    "encoder.lstm.weight_ih_l0": (1024, 512), "encoder.lstm.weight_hh_l0": (1024, 256),
    "encoder.lstm.bias_ih_l0": (1024,), "encoder.lstm.bias_hh_l0": (1024,),
    "encoder.lstm.weight_ih_l0_reverse": (1024, 512),
    "encoder.lstm.weight_hh_l0_reverse": (1024, 256), "encoder.lstm.bias_ih_l0_reverse": (1024,),
    "encoder.lstm.bias_hh_l0_reverse": (1024,),
    "decoder.prenet.linear_layers.0.linear_layer.weight": (256, 80),
    "decoder.prenet.linear_layers.1.linear_layer.weight": (256, 256),
    "decoder.attention_rnn.weight_ih": (4096, 768), "decoder.attention_rnn.weight_hh": (4096, 1024),
    "decoder.attention_rnn.bias_ih": (4096,), "decoder.attention_rnn.bias_hh": (4096,),
    "decoder.attention.query_layer.linear_layer.weight": (128, 1024),
    "decoder.attention.inputs_layer.linear_layer.weight": (128, 512),
    "decoder.attention.v.linear_layer.weight": (1, 128),
    "decoder.attention.v.linear_layer.bias": (1,),
    "decoder.attention.location_layer.location_conv1d.weight": (32, 2, 31),
    "decoder.attention.location_layer.location_dense.linear_layer.weight": (128, 32),
    "decoder.decoder_rnn.weight_ih": (4096, 1536), "decoder.decoder_rnn.weight_hh": (4096, 1024),
    "decoder.decoder_rnn.bias_ih": (4096,), "decoder.decoder_rnn.bias_hh": (4096,),
    "decoder.linear_projection.linear_layer.weight": (160, 1536),
    "decoder.linear_projection.linear_layer.bias": (160,),
    "decoder.stopnet.1.linear_layer.weight": (1, 1184),
    "decoder.stopnet.1.linear_layer.bias": (1,),
    **coqui_convolution("postnet.convolutions.0", 512, 80, 5),
    **coqui_convolution("postnet.convolutions.1", 512, 512, 5),
    **coqui_convolution("postnet.convolutions.2", 512, 512, 5),
    **coqui_convolution("postnet.convolutions.3", 512, 512, 5),
    **coqui_convolution("postnet.convolutions.4", 80, 512, 5),
}  # fmt: skip
# What matters to us of the config.json that Coqui's recipe for LJSpeech writes.
COQUI_CONFIG = {
    "model": "tacotron2", "r": 2, "attention_type": "original", "attention_norm": "softmax",
    "location_attn": True, "prenet_type": "original", "prenet_dropout": True,
    "prenet_dropout_at_inference": False, "use_phonemes": False, "use_gst": False,
    "text_cleaner": "english_cleaners",
    "characters": {
        "characters_class": "TTS.tts.utils.text.characters.Graphemes", "vocab_dict": None,
        "pad": "<PAD>", "eos": "<EOS>", "bos": "<BOS>", "blank": "<BLNK>", "characters": "dcbBaa",
        "punctuations": "!'(),-.:;? abcdefgh", "is_unique": False, "is_sorted": True,
    },
    "audio": {
        "fft_size": 1024, "win_length": 1024, "hop_length": 256, "sample_rate": 22050,
        "num_mels": 80, "mel_fmin": 0.0, "mel_fmax": 8000, "preemphasis": 0.0,
        "signal_norm": False, "log_func": "np.log", "spec_gain": 1.0, "ref_level_db": 20,
    },
}  # fmt: skip


def small_peer() -> torchaudio.models.Tacotron2:
    """Make a small model with no two entries alike and counters that are not 0."""
    torch.manual_seed(0)
    model = torchaudio.models.Tacotron2(**PEER_SIZES)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(9)
        else:
            tensor.uniform_(0.1, 0.9)
    return model.eval()


def small_state(layout: str) -> dict[str, Tensor]:
    """Return small_peer's weights in either layout; NVIDIA_SHAPES holds NVIDIA's names fast."""
    state = small_peer().state_dict()
    if layout == "nvidia":
        ours = Tacotron2(OUR_SIZES).state_dict()
        state = {peer_name(n, "nvidia"): state[peer_name(n, "torchaudio")] for n in ours}
    return state


def run_cli(*argv: str | Path) -> None:
    main([str(value) for value in argv])


def error_of(*argv: str | Path) -> str:
    """Return the one sentence that a failing conversion ends with."""
    with pytest.raises(SystemExit) as caught:
        run_cli(*argv)
    message = caught.value.code
    assert isinstance(message, str), f"exit status {message}: argparse's, not ours"
    assert message.startswith("convert_checkpoint.py: ") and "\n" not in message
    return message
