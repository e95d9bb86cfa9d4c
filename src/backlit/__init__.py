"""Backlit: attribution maps from modified and learned back-propagation."""
