"""What the methods of this plugin share: graphs, layers, features of images, pose vectors."""
