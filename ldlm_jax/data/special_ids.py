"""Ids of the special tokens, which stand before all others in every vocabulary."""

PAD, MASK, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<mask>", "<eos>")
