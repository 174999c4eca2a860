"""Source tars, the crops drawn from their images, and the tars of those crops."""
