//! The netaudit binary: parses the command line and makes one call.

use std::process::ExitCode;

fn main() -> ExitCode {
    netaudit::cli::main()
}
