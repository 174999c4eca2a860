"""Source tars, the crops drawn from their pictures, and the tars of those crops."""
