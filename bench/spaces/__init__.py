"""What a file of search_spaces/ says: what is searched, where it starts, what is optimised."""
