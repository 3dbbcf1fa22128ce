//! Who is calling, and whether they may: taken from the certificate and the registry, in one place, for
//! every call.

use comity_certs::{Clock, Identity, Role, fingerprint_of_certificate};
use comity_federation::{ClientId, KeyFingerprint};
use comity_proto::limits::CONNECTIONS_MAX;
use comity_proto::transport::PeerCertificates;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::membership::Members;
use crate::registry::{MemberName, OperatorRole};

/// Puts the [`Caller`] into the request, or refuses it: a call is taken of whoever is enrolled with exactly
/// the key of its certificate, and was not revoked.
#[derive(Clone, Debug)]
pub(crate) struct Authenticate {
    /// Name of this federation; certificates of another one are refused.
    pub(crate) federation: String,
    pub(crate) members: Members,
    pub(crate) clock: Clock,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) identity: Identity,
    pub(crate) key: KeyFingerprint,
    /// What an operator may do, by the registry; `None` for a client.
    role: Option<OperatorRole>,
    /// Admins, whom to ask.
    members: Members,
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
        let key = fingerprint_of_certificate(&peer.chain[0])
            .map_err(|e| Status::unauthenticated(e.to_string()))?;
        let name = MemberName::of(&identity.role).ok_or_else(|| {
            Status::permission_denied("the coordinator's certificate is not for calls")
        })?;
        let role = self.members.now().admit(&name, &key, self.clock.now())?;
        let members = self.members.clone();
        request.extensions_mut().insert(Caller { identity, key, role, members });
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
    match &caller(request)?.identity.role {
        Role::Client(client) => Ok(client.clone()),
        _ => Err(Status::permission_denied("this call is for clients; use a client's certificate")),
    }
}

/// The operator that calls to see something: any.
pub(super) fn viewer<T>(request: &Request<T>) -> Result<String, Status> {
    operator(request, OperatorRole::Viewer)
}

/// The operator that calls to do something with runs and their models.
pub(super) fn launcher<T>(request: &Request<T>) -> Result<String, Status> {
    operator(request, OperatorRole::Launcher)
}

/// The operator that calls to say who belongs to the federation.
pub(super) fn admin<T>(request: &Request<T>) -> Result<String, Status> {
    operator(request, OperatorRole::Admin)
}

fn operator<T>(request: &Request<T>, least: OperatorRole) -> Result<String, Status> {
    let caller = caller(request)?;
    match (&caller.identity.role, caller.role) {
        (Role::Operator(name), Some(role)) if role >= least => Ok(name.clone()),
        (Role::Operator(name), Some(role)) => {
            let registry = caller.members.now();
            let admins = registry.admins().join(", ");
            Err(Status::permission_denied(format!(
                "operator {name} is {role}, and this needs {least}; ask an admin ({admins}) for \
                 `members role {name} {least}`"
            )))
        }
        _ => Err(Status::permission_denied(
            "this call is for operators; use an operator's certificate",
        )),
    }
}

/// Whoever calls.
pub(super) fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .ok_or_else(|| Status::unauthenticated("the caller was not identified"))
}
