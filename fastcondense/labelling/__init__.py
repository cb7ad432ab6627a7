"""Labels of replayed views: on the fly, stored, or as others publish them; and the fingerprint that checks them."""
