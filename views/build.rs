//! A migration that is added is built in, too: the macro that takes them in only follows those that it has seen.

fn main() {
    println!("cargo:rerun-if-changed=../migrations/views");
}
