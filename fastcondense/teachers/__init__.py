"""Teachers: networks by name, their fusing for recover, and the squeeze that trains or takes them."""
