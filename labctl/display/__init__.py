"""What the screen of a VM shows, reached as its user reaches it: by a VNC client of the lab's own, and by noVNC in a real browser."""
