"""The feature field: scene, views, rendering, training; what every part of the plugin builds on."""
