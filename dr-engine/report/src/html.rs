//! Renderings as HTML that stands alone: styles inside, pictures as SVG, no script, nothing loaded.
//!
//! Colour never carries a meaning alone: every judgement is also a word. Tables have headers, pictures
//! have a title and a description, and all they show stands in a table too.

mod certificate;
mod drill;
mod page;
mod picture;
mod quarter;

pub use certificate::certificate;
pub use drill::drill;
pub use page::duration;
pub use quarter::quarter;
