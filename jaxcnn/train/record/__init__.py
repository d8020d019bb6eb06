"""What a run leaves: checkpoints, logs and curves in its workdir, and lines on the screen."""
