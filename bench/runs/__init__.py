"""One run of one configuration: unlearn, evaluate, write its rows."""
