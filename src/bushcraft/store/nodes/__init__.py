"""What the nodes of a cluster do for each other: a verified cache, peers, a neighbour's memory."""
