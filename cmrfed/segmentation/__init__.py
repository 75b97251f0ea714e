"""The reference segmenter, and masks that it completes."""
