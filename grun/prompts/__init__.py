"""How a model is asked: what stands around a question, and how text becomes tokens."""
