"""The metrics themselves judged, by models that are known to know the forget set or not."""
