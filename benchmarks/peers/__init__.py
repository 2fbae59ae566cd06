"""What others do with the same model, rows and global batch; each runs in processes of its own."""
