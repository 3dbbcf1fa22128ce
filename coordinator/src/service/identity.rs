//! Who is calling: taken from the certificate, in one place, for every call.

use comity_certs::{Identity, Role};
use comity_federation::ClientId;
use comity_proto::limits::CONNECTIONS_MAX;
use comity_proto::transport::PeerCertificates;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Puts the caller's [`Identity`] into the request, or refuses it.
#[derive(Clone, Debug)]
pub(crate) struct Authenticate {
    /// Name of this federation; certificates of another one are refused.
    pub(crate) federation: String,
}

impl Interceptor for Authenticate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = connection(&request)?;
        if peer.crowded {
            return Err(Status::resource_exhausted(format!(
                "{CONNECTIONS_MAX} connections are open, as many as the coordinator takes; try again \
                 in a while"
            )));
        }
        if peer.chain.is_empty() {
            return Err(no_certificate());
        }
        let identity =
            Identity::of_chain(&peer.chain).map_err(|e| Status::unauthenticated(e.to_string()))?;
        if identity.federation != self.federation {
            return Err(Status::permission_denied(format!(
                "the certificate is of federation {}, this is {}; use the certificate of this federation",
                identity.federation, self.federation
            )));
        }
        request.extensions_mut().insert(identity);
        Ok(request)
    }
}

/// The connection on which the call came.
pub(super) fn connection<T>(request: &Request<T>) -> Result<&PeerCertificates, Status> {
    request.extensions().get::<PeerCertificates>().ok_or_else(no_certificate)
}

fn no_certificate() -> Status {
    Status::unauthenticated("the connection has no client certificate")
}

/// The client that calls.
pub(super) fn client<T>(request: &Request<T>) -> Result<ClientId, Status> {
    match role(request)? {
        Role::Client(client) => Ok(client.clone()),
        _ => Err(Status::permission_denied("this call is for clients; use a client's certificate")),
    }
}

/// The operator that calls.
pub(super) fn operator<T>(request: &Request<T>) -> Result<String, Status> {
    match role(request)? {
        Role::Operator(name) => Ok(name.clone()),
        _ => Err(Status::permission_denied(
            "this call is for operators; use an operator's certificate",
        )),
    }
}

fn role<T>(request: &Request<T>) -> Result<&Role, Status> {
    request
        .extensions()
        .get::<Identity>()
        .map(|identity| &identity.role)
        .ok_or_else(|| Status::unauthenticated("the caller was not identified"))
}
