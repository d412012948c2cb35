"""Reading and writing of images, poses and files; conventions are converted here and nowhere else."""
