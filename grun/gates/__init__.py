"""Gates as a whole: how many of the prompts that are to be kept a threshold lets through."""
