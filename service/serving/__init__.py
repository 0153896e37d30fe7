"""The use cases, without HTTP: which models there are, and running rows through them."""
