"""GRUN: gated representation unlearning (arXiv 2502.17823) and its baselines, in plain torch.

Tensor names carry their shapes (`h_BLD`). The letters mean the same everywhere; a file names only what departs from it.
B sequences, or the prompts they begin with · L tokens · N answer tokens of a whole batch, sequence after sequence
P tokens before a prompt's last one · T tokens from that one on · S = P + T, tokens in a cache · M layers that keep keys
and values · H heads · d head size · D hidden size · V vocabulary · R rank of an edit · K gates, one a request and layer
"""
