"""One model over several processes, the ranks: each holds a share of its weights and takes part in every step."""
