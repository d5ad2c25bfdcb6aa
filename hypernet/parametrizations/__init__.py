"""What raw tensors become: bases they are added to, scales that bring them to size."""
