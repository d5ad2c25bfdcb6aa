"""Choosing among samples: by a score on data that nothing is reported on."""
