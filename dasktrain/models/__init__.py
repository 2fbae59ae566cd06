"""Models to start from: plain modules, usable without the rest of dasktrain.

Those of text are called with the names that Hugging Face's have: ``input_ids``, ``attention_mask``,
``decoder_input_ids``.
"""

from dasktrain.models.convolution import TextCNN
from dasktrain.models.decoder import Decoder
from dasktrain.models.encoder import Encoder
from dasktrain.models.encoder_decoder import EncoderDecoder
from dasktrain.models.mlp import MLP, ResNetMLP

__all__ = ["MLP", "Decoder", "Encoder", "EncoderDecoder", "ResNetMLP", "TextCNN"]
