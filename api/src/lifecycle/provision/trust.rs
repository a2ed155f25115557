//! The certificate of our authority, in boxes whose requests get headers.

use std::sync::Arc;

use crate::boxes::{Entry, WorkKind};
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;

/// Path of the certificate of our authority in a box with headers.
pub(super) const CERTIFICATE_PATH: &str = "/usr/local/share/ca-certificates/icebox.crt";
/// Does the work of `update-ca-certificates` for one certificate, in a hundredth of its time: the file, the bundle, and
/// the link by which OpenSSL finds it. `$0` is the file, `$1` its text. A copy of a box has it already.
const TRUST_SCRIPT: &str = "set -e; [ \"$(cat \"$0\" 2>/dev/null)\" != \"$(printf %s \"$1\")\" ] || exit 0; \
                            printf %s \"$1\" > \"$0\"; printf %s \"$1\" >> /etc/ssl/certs/ca-certificates.crt; \
                            ln -sf \"$0\" /etc/ssl/certs/icebox.pem; \
                            ln -sf icebox.pem \"/etc/ssl/certs/$(openssl x509 -hash -noout -in \"$0\").0\"";

/// Debian's bundle.
const TRUST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Variables for programs with trust stores of their own. Variables that the owner has set stay.
pub(in crate::lifecycle) const TRUST_ENV: [(&str, &str); 6] = [
    ("CURL_CA_BUNDLE", TRUST_BUNDLE),
    ("GIT_SSL_CAINFO", TRUST_BUNDLE),
    ("NODE_EXTRA_CA_CERTS", CERTIFICATE_PATH),
    ("PIP_CERT", TRUST_BUNDLE),
    ("REQUESTS_CA_BUNDLE", TRUST_BUNDLE),
    ("SSL_CERT_FILE", TRUST_BUNDLE),
];

impl Lifecycle {
    /// Puts the certificate of our authority into the trust stores of a new box with headers. The path is Debian's for
    /// an administrator's certificates, so `update-ca-certificates` keeps it.
    pub(super) async fn trust_certificate(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let Some(certificate) = self.boxes.certificate_for(entry) else { return Ok(()) };
        let awake = self.ensure_awake(entry, WorkKind::Request).await?;
        self.run_script(&awake, TRUST_SCRIPT, &[CERTIFICATE_PATH, &certificate]).await
    }
}
