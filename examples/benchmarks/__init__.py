"""Times of polar factors and of whitening within training, logs of them, and the page."""
