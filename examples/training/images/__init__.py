"""Two small networks on MNIST, every optimizer tuned alike; see docs/images.md."""
