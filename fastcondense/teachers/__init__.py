"""Teachers: frozen networks, fused for recover, that keep the moments of their layers; and their files."""
