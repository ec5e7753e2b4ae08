"""What the models of this example are, and when one has learned enough."""

from .corpus import CHINESE, ENGLISH, PADDING

SEED = 0
MODEL = {
    "src_vocab": len(ENGLISH),
    "tgt_vocab": len(CHINESE),
    "padding_idx": PADDING,
    "d_model": 32,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 64,
    "dropout": 0.0,
}
LEARNING_RATE = 3e-3
MOST_STEPS = 2000
ENOUGH = 0.01  # mean cross-entropy a token: by then every next token is the likeliest by far
