"""Measuring a model: raw values of every item, attacks, and the scores made of them."""
