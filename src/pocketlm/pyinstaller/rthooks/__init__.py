"""What runs in a frozen application before its own program; PyInstaller names this folder."""
