"""Latents and features of a config's images, written once and read in every epoch."""
