//! `skiff snapshot export` and `import`.
