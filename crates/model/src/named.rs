//! Walks over a module's float parameters with their paths: names of fields and indices, joined by dots.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// Sees parameters.
pub trait VisitNamed {
    /// The parameter at `path`.
    fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>);
}

/// Replaces parameters.
pub trait MapNamed {
    /// What is to be at `path` in place of `param`.
    fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Shows every float parameter of a module to `visitor`, in the order of its fields.
pub fn visit_named<M: Module>(module: &M, visitor: &mut impl VisitNamed) {
    module.visit(&mut Walk { path: Vec::new(), at: visitor });
}

/// Replaces every float parameter of a module by what `mapper` makes of it, in the order of its fields.
pub fn map_named<M: Module>(module: M, mapper: &mut impl MapNamed) -> M {
    module.map(&mut Walk { path: Vec::new(), at: mapper })
}

struct Walk<'a, T> {
    path: Vec<String>,
    at: &'a mut T,
}

impl<V: VisitNamed> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.at.parameter(&self.path.join("."), param);
    }
}

impl<C: MapNamed> ModuleMapper for Walk<'_, C> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.at.parameter(&self.path.join("."), param)
    }
}
