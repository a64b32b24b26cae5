"""Sources of images and the loader that serves them."""
