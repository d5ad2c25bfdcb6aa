"""Priors: what latents are drawn from, trained or computed. One prior, one short file."""
