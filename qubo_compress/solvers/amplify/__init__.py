"""Annealers of other makers, through Fixstars Amplify's package."""
