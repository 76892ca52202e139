"""Reads a loss: from the program of a model to the matrices among its parameters."""

from egd_optax._program._reader import read_program as read_program
